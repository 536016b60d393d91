"""What happens to the linear layers of the blocks: low-rank adapters, int8, and products on a CPU."""
