"""How cost grows with images, ranks and trials: what is measured on one machine, and a model of 1 to 64 GPUs."""
