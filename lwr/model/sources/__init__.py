"""What base models and their heads are read from, beside plain backbones."""
