"""The embedded world: pictures drawn here, whose contents are exactly known, for the whole loop without a network."""
