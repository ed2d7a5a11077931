"""A synthetic set of captioned pictures whose truth is known: coloured shapes in the cells of a square."""
