#version 330
#include "pose.glsl"

in vec3 place;  // on the unit sphere; the pupil lies at +z

uniform vec3 centre;
uniform float radius;
uniform mat3 gaze;

out vec3 at;
out vec3 on_ball;   // turns with the eye
out vec3 in_socket; // does not
out vec3 facing;
out vec4 in_light;

void main() {
    float cornea = 0.055 * smoothstep(0.46, 0.0, length(place.xy)) * step(0.0, place.z);
    on_ball = place;
    in_socket = gaze * (place * (1.0 + cornea));
    at = posed(centre + radius * in_socket, 1.0);
    facing = posed_normal(gaze * place, 1.0);
    in_light = light_projection * vec4(at, 1.0);
    gl_Position = view_projection * vec4(at, 1.0);
}
