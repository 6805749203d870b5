"""Other methods, and the benchmark that sets them beside ILTM."""
