"""What secure rounds cost inside other stacks, beside what the stack has of its own."""
