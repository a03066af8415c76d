"""What is counted in the data, and what ValidationGate checks of it."""
