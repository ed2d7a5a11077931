"""Training, for every task: the loop, the optimiser, averages of the weights, and runs that survive being stopped."""
