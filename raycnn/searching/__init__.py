"""Search over settings: many fits that share one stream of images and the frozen prefix of one network."""
