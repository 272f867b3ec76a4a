"""Where models run: sampler and learner on transformers, in one process or over many."""
