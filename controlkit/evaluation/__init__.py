"""Does it follow, how good is it: measures of pictures."""
