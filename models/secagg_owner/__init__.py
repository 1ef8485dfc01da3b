"""The model owner's commands: what is published to tenants, and what comes back."""
