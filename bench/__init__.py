"""What inlay costs: speed and memory, beside the least that is possible and beside peft."""
