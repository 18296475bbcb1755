"""raycnn: fine-tune pretrained convolutional networks at cluster scale."""
