"""Worth of drafts: held_out (tokens a step, agreement), chains (of a head), calibrate."""
