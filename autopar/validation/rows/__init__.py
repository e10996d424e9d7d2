"""Published measurements: their tables read, completed by what the source states."""
