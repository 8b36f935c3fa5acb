"""The network: backbones, neck, proposal stage, RoI heads and the assembled detector."""
