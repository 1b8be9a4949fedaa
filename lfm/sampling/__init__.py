"""What a trained velocity is used with."""
