"""The scheduler: pure decisions, from requests and costs to one plan a step."""
