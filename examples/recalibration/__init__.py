"""What the calibration study is made of: pictures, runs, maps, figures."""
