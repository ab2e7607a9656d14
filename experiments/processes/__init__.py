"""The processes of a training, and the machine that they run on."""
