"""Parts for Tauon from outside, one file each, by entry points alone."""
