"""Best bound first through a space, alone or with other workers, and the certificate of that."""
