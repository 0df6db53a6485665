#version 330
#include "pose.glsl"

in vec3 place;
in vec3 normal;
in vec3 canonical;  // the same vertex on the base mesh: where things are painted
in vec4 masks;      // lips, inside of the mouth, ears, eyelids
in vec2 shade;      // how open to the sky; how far it follows the head
in vec3 flush;      // redness, shadow under the eyes, oil

uniform float shell;  // thickness of clothes: how far the surface is blown up below the neck

out vec3 at;
out vec3 facing;
out vec3 base;
out vec4 mask;
out vec4 in_light;
out float openness;
out vec3 tint;

void main() {
    vec3 blown = place + normal * shell * smoothstep(0.0, 1.0, (6.35 - canonical.y) * 2.0);
    at = posed(blown, shade.y);
    facing = posed_normal(normal, shade.y);
    base = canonical;
    mask = masks;
    openness = shade.x;
    tint = flush;
    in_light = light_projection * vec4(at, 1.0);
    gl_Position = view_projection * vec4(at, 1.0);
}
