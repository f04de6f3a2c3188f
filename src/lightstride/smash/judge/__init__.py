"""What the grafts are worth: held_out (tokens a step, agreement) and calibrate (the confidence)."""
