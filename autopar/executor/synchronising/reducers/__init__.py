"""What a compression of :mod:`autopar.sync` does to a mean over ranks, a file each."""
