"""What processes of ranks and servers share: their end, their failures, their progress."""
