"""Collectors: prompts become scored, admitted groups, and groups become rows."""
