"""How each kind of task is predicted and measured."""
