"""Other libraries as they come: their networks, training loops and samplers, behind one interface."""
