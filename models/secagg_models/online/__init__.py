"""Online use: noticing drift, judging versions, measuring what is forgotten. All of it local."""
