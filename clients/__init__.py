"""What people and programs use to watch and steer a stream. Imports nothing of the other packages.

The package holds the web page (`clients/web`) as data, so that an installed server can serve it.
"""
