"""What happens to the linear layers of the blocks: low-rank adapters, int8, and the speed of bfloat16 on a CPU."""
