"""A run's configuration: its schema, the paper's presets, plain values, and the errors a user can mend."""
