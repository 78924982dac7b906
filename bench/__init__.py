"""What inlay costs, compared with the least possible and with peft, and what papers claim."""
