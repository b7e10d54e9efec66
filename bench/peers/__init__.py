"""What people use today, one file each, behind the small protocols of channel.py, workers.py and handover.py."""
