"""Every number of a training run as data: the schema, and the shipped presets."""
