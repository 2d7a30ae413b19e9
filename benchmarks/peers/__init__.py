"""The same network in the frameworks one would use instead."""
