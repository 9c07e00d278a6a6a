"""What engines tell only while somebody wants to know: kept over all incarnations of an engine, passed on to whoever subscribes."""
