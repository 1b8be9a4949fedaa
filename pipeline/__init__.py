"""What the stages share: files, parameters, randomness and the machine. No models, no mathematics."""
