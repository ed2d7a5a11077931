"""Published weights: what their files call the tensors of networks that Unfog has too, and runs made of them."""
