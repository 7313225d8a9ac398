"""What is loaded and saved: bases, ControlNets, their families."""
