"""Everything that reads or writes a file: image data, checkpoints, released networks."""
