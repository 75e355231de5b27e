"""The parts of `gpu_session.py`: what packages it needs, how a part runs, and what is reported. Only Python's own library, so that
it says what is missing on a machine where little is installed."""
