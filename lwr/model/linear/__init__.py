"""What happens to the linear layers of the blocks: low-rank adapters, int8, and the speed of 16 bits on a CPU."""
