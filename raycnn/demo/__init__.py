"""The demo: a local object store, real images and real weights."""
