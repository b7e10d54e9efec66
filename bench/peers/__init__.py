"""What people use today, one file each, behind the two small protocols of channel.py and workers.py."""
