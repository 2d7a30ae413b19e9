"""The tables and figures of §4, one file each, and the measures they are judged by."""
