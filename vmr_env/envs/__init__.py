"""The environments: one sample's moment, refined step by step."""
