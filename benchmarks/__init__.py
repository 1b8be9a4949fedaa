"""Where speed and memory are measured."""
