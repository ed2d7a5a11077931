"""Reports and the scores that train a network."""
