"""Which terms of a plain ``log_joint`` read which entries of which latent."""
