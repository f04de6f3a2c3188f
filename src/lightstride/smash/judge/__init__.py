"""Worth of the grafts: held_out (tokens a step, agreement) and calibrate (the confidence)."""
