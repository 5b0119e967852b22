"""The demo's engines are processes of their own and set themselves up; this is for what runs in the test's process."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is imported; see p2pkv/demo/processes.py
